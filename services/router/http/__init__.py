"""The router's OpenAI-compatible HTTP door.

An endpoint is a Starlette endpoint of a module that has `routes(door)`. Before it reads a body it lets the
caller in: `call = await exchange_of(request).enter()`. Then `call.generate(wire, message, sink)` gives an
answer, and `EventStream` sends one in parts. Whatever is raised on the way is answered by `app`.
"""
