"""Learning how to pretrain: policies, the rules that compute them, and hypergradients."""
