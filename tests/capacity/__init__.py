"""How large a site may become: a model on paper, a simulation that it is held against, and what a broker carries."""
