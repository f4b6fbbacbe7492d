"""LAFR: Latent Alignment for Face Restoration (arXiv 2505.23462). Listing the package tells the method in order."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """Load `lafr.Restorer` and `lafr.LAFRPipeline` on first use, so that light imports stay light."""
    if name == "Restorer":
        from lafr.models.restorer import Restorer

        return Restorer
    if name == "LAFRPipeline":
        from lafr.export.pipeline import LAFRPipeline

        return LAFRPipeline
    raise AttributeError(f"module 'lafr' has no attribute {name!r}")
