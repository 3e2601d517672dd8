"""Stand-ins for the networks of others: their kinds, and what their controllers make of objects of these."""
