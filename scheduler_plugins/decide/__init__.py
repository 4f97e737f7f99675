"""What the cluster should do: pure rules over events and settings.  PURE"""
