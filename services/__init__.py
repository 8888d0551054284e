"""The stages of nevstream, in the order a packet meets them; ``topology`` alone knows that order."""
