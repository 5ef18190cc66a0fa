"""The only reader of configuration: YAML in, values of ``model.estate`` out, every mistake with its place."""
