"""One small class per source of telemetry; `swarm.telemetry.sampler` opens and reads them."""
