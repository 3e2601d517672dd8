"""Telling the firewall team: profiles that speak to ticket systems, and the run that decides what they say."""
