"""The domain of Hawse: what every process shares, and nothing that speaks to the outside but `egress.adapters`."""
