"""The version of the project: declared here, read by packaging and by the service."""

VERSION = "0.1.0"
