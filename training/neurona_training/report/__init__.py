"""The page that a run leaves about its model, with charts: OUT/NAME/report/report.html.

One HTML file with everything in it.

page          what stands on the page; page.html.jinja is its template
charts        the sections that are pictures, and the learning curves
calibration   whether probabilities can be taken at their word
predictions   confusion matrix, recall, predicted against true values, forecast
mistakes      the worst predictions, each with its input
weights       the weights of the first layer
drawing       colours and figures that all charts share
results       what a report is about
"""
