"""The Flower app's server side: thin, the code is in fedattn."""
