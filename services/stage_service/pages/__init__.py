"""The pages that people watch Baton on: rendered here, no build step, nothing from elsewhere."""

from services.stage_service.pages.routes import pages_router

__all__ = ["pages_router"]
