"""accelerate subclasses this when it is imported."""


class MpDeviceLoader:
    """Never made: the stand-in's loader is the ordinary one."""
