"""What we say aloud: best-effort notes over ZeroMQ PUB/SUB. Nothing ever depends on a note arriving."""
