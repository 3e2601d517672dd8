"""In-memory stand-ins that behave like the real thing; `tests/contract` holds both to one suite."""
