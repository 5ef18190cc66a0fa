"""The command line: words in, one operation called, words or one JSON document out."""
