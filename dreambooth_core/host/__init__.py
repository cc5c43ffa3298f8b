"""The program that we run in: a WebUI, or none. The only place that may import its `modules`."""
