"""Kills, power cuts and bad disks, and the means to judge what is left afterwards."""
