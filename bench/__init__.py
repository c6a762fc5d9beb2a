"""`make bench`: this daemon beside llama-server and llama_cpp.server, as ratios of one run."""
