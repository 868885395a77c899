"""What each verb does, callable from Python: the command line decides nothing and hands over to these."""
