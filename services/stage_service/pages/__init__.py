"""The pages that people watch Baton on."""

from fastapi import APIRouter


def pages_router() -> APIRouter:
    """Give the routes of the pages."""
    return APIRouter()
