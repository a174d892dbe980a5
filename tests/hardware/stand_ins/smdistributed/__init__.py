"""Stands in for SageMaker's libraries."""
