"""The cloud IP agent: leases outbound addresses for this host, has them attached, and publishes them as ready.

service     the process
agent       one turn of the lease's life
memory      what the agent remembers of a lease: doubts, waits, flips
fence       deadlines, and what may be on the network interface until then
interface   this host's network interface
reverse     whether the reverse name of an address is right
providers/  who attaches an address to this host
"""
