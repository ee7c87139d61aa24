"""The event loop: asyncio or trio behind one protocol, and how other threads reach it."""
