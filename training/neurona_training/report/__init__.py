"""The page that a run leaves about its model, with charts: OUT/NAME/report/report.html.

One HTML file with everything in it, which explains each word where it first stands.

page                  what stands on the page; page.html.jinja is its template
glossary              the words, and which of them were explained already
input_numbers         a test row as the numbers that it is
network_layers        the layers: what they do, output sizes, parameters
architecture_drawing  the table of layers, and a drawing of them
charts                training, predictions, mistakes, and the learning curves
predictions           confusion matrix, recall, predicted against true values, forecast
calibration           whether probabilities can be taken at their word
thresholds            ROC, precision and recall, thresholds for a purpose
decision_border       what a network of one or two inputs answers everywhere
mistakes              the worst predictions, each with its input
importance            which columns of a table matter
weights               the weights before and after training
preferred_stimuli     bars and edges that the cells of a neocognitron prefer
feature_maps          maps, receptive fields and favourite patches of deeper layers
grad_cam              where an image network looks
gates                 the gates of recurrent networks over time
latency               how long the file takes for sequences of each length
model_card            use, data, quality and limits of the model
drawing               colours, figures and sections that all share
results               what a report is about
"""
