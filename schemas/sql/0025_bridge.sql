-- The newest events of the bridge's connections to the broker, which bear no VIN (door 3, Door.MQTT_BRIDGE): the doctor
-- asks for them with every vehicle.
CREATE INDEX link_events_bridge ON link_events (occurred_at) WHERE door = 3 AND vin IS NULL;
