-- One command in flight per vehicle, whichever gateways it is connected to.
CREATE UNIQUE INDEX commands_in_flight ON commands (vin) WHERE state = 'sent';
