"""The contract between the rooms: profiles as frozen data, without any framework."""
