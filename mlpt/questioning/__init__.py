"""Self-questioning: how hard each token of a corpus is for a model (SE4PLMs, Zhong et al., ACL Findings 2023)."""
