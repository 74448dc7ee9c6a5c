"""The cloud IP agent: leases outbound addresses for this host, has them attached, and publishes them as ready.

service     the process
agent       one turn of the lease's life, and the fence
interface   this host's network interface: can a socket be bound here
providers/  who attaches an address to this host
"""
