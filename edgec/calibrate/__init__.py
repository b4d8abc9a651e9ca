"""What a model does on real inputs: calibration data, the values inside of a graph, and statistics of them.

calibration = data.load("texts.txt", graph, files)
capture(graph, nodes, calibration.feeds, visit)
"""
