"""What the tests of the camera source share."""

from tests.cameras.sources import film, rtsp_camera

__all__ = ["film", "rtsp_camera"]
