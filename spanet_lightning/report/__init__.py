"""From the stored trials of a study to a report: results, statistics, figures, pages."""
