"""`fenchel compare`: train one model under several objectives and say which is better, faster and smaller."""
