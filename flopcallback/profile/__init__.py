"""The contract between the rooms: profiles as frozen data that know no framework."""
