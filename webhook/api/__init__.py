"""`hawse-api`: what people's systems read of Hawse and tell it, address lists and the callbacks of ticket systems."""
