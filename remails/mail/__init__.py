"""What mail is: pure functions of bytes and text. No sockets, no SQL, no clock."""
