//! The page around the parts.

use super::completions::Completions;
use super::metrics::Series;
use super::options::Options;
use super::text::escape;
use super::{charts, evaluations};

const STYLE: &str = include_str!("style.css");

/// Should markup ever get past the escaping, it can neither run nor fetch anything.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

pub(super) fn html(title: &str, series: &Series, completions: &Completions, options: &Options) -> String {
    let title = escape(title);
    let [summary, evaluations] = [evaluations::summary(series), evaluations::html(series)];
    let [charts, options, completions] = [charts::html(series), options.html(), completions.html()];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<header><h1>{title}</h1>\n<p>{summary}</p></header>\n{evaluations}\
         <section><h2>Curves</h2>\n<p>Over the optimizer steps. Where there are many, a moving average lies over the values of the \
         steps.</p>\n<div class=\"plots\">\n{charts}</div></section>\n{options}{completions}</body>\n</html>\n"
    )
}
