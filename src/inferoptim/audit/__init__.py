"""Know the traffic: read request logs as a stream, describe them, price their tokens, sample them. No torch."""
