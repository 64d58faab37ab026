"""Thin adapters to the engines that people train with."""
