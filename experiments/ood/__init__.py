"""S10: does the distance from the data leaf tell what is out of distribution?"""
