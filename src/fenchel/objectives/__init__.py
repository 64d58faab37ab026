"""Objectives: frozen dataclasses whose fields are hyper-parameters, each with one pure method."""
