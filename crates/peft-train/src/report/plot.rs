//! One plot as an inline SVG.

use super::metrics::Point;
use super::text::{escape, number};
use std::fmt::Write;

/// In units of the drawing; the page scales it to its column.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 210.0;
const TOP: f64 = 10.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 24.0;

/// The width of a character of a label, at most.
const CHARACTER: f64 = 6.6;

/// From so many points on a smooth curve lies over a faint one of the values themselves.
const SMOOTHED: usize = 40;

/// A curve is drawn with no more points than can be told apart.
const DRAWN: usize = 420;

/// Up to so many points each has a dot that shows its value.
const DOTTED: usize = 40;

/// A curve and its name.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
}

/// The drawing of curves that have at least one point each. `whole` is what the vertical axis covers at least.
pub(super) fn svg(title: &str, curves: &[Curve], whole: Option<(f64, f64)>) -> String {
    let axes = Axes::around(curves, whole);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over the steps\">\n",
        escape(title)
    );
    axes.draw(&mut svg);
    for (index, curve) in curves.iter().enumerate() {
        // More curves than colours are told apart by their dashes and the list beside them.
        curve.draw(&mut svg, &axes, index % 6);
    }
    svg.push_str("</svg>");
    svg
}

impl Curve {
    fn draw(&self, svg: &mut String, axes: &Axes, color: usize) {
        // The intervals of curves that are measured at the same steps lie side by side.
        let aside = 4.0 * color as f64;
        // Writing into a string cannot fail.
        let _ = writeln!(svg, "<g class=\"c{color}\">");
        for point in &self.points {
            if let Some((low, high)) = point.interval {
                let (x, low, high) = (axes.x(point.step) + aside, axes.y(low), axes.y(high));
                let _ = writeln!(svg, "<path class=\"interval\" d=\"M{x:.1} {low:.1}V{high:.1}\"/>");
            }
        }
        if self.points.len() >= SMOOTHED {
            let _ = writeln!(svg, "<path class=\"raw\" d=\"{}\"/>", path(axes, &envelope(&self.points)));
            let _ = writeln!(svg, "<path class=\"line\" d=\"{}\"/>", path(axes, &envelope(&smooth(&self.points))));
        } else {
            let _ = writeln!(svg, "<path class=\"line\" d=\"{}\"/>", path(axes, &self.points));
        }
        if self.points.len() <= DOTTED {
            for point in &self.points {
                let (x, y) = (axes.x(point.step), axes.y(point.value));
                let text = format!("{}, step {}: {}", self.name, point.step, number(point.value));
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.4\"><title>{}</title></circle>",
                    escape(&text)
                );
            }
        }
        svg.push_str("</g>\n");
    }
}

fn path(axes: &Axes, points: &[Point]) -> String {
    let mut path = String::new();
    for (index, point) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", axes.x(point.step), axes.y(point.value));
    }
    path
}

/// The mean of the values around each point, over a twentieth of the curve.
fn smooth(points: &[Point]) -> Vec<Point> {
    let reach = points.len() / 40 + 1;
    let mean = |index: usize| {
        let window = &points[index.saturating_sub(reach)..(index + reach + 1).min(points.len())];
        window.iter().map(|point| point.value).sum::<f64>() / window.len() as f64
    };
    points.iter().enumerate().map(|(index, point)| Point { value: mean(index), ..*point }).collect()
}

/// Few points with the outline of many: of each stretch the first, the lowest, the highest and the last.
fn envelope(points: &[Point]) -> Vec<Point> {
    if points.len() <= DRAWN {
        return points.to_vec();
    }
    let mut drawn = Vec::with_capacity(DRAWN);
    for stretch in points.chunks(points.len().div_ceil(DRAWN / 4)) {
        let by_value = |a: &&Point, b: &&Point| a.value.total_cmp(&b.value);
        let corners =
            [stretch.first(), stretch.iter().min_by(by_value), stretch.iter().max_by(by_value), stretch.last()];
        let mut corners: Vec<Point> = corners.into_iter().flatten().copied().collect();
        corners.sort_by(|a, b| a.step.total_cmp(&b.step));
        corners.dedup();
        drawn.extend(corners);
    }
    drawn
}

/// Where steps and values lie in the drawing.
#[derive(Debug)]
struct Axes {
    steps: (f64, f64),
    values: (f64, f64),
    step_ticks: Vec<f64>,
    value_ticks: Vec<f64>,
    left: f64,
}

impl Axes {
    fn around(curves: &[Curve], whole: Option<(f64, f64)>) -> Self {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let ends = |point: &Point| {
            let (low, high) = point.interval.unwrap_or((point.value, point.value));
            [low, high, point.value]
        };
        let steps = range(points().map(|point| point.step));
        let (mut low, mut high) = range(points().flat_map(ends).chain(whole.into_iter().flat_map(|(a, b)| [a, b])));
        // A curve that comes near zero, seen from its own height, is shown with the zero.
        if low > 0.0 && low < 0.6 * high {
            low = 0.0;
        }
        if high == low {
            let half = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (low - half, high + half);
        }
        let value_ticks = ticks(low, high, 5, 0.0);
        let step_ticks = ticks(steps.0, steps.1, 6, 1.0);
        let longest = value_ticks.iter().map(|&tick| number(tick).chars().count()).max().unwrap_or(0);
        // The curve keeps off the frame.
        let margin = 0.03 * (high - low);
        let values = if whole == Some((low, high)) { (low, high) } else { (low - margin, high + margin) };
        Self { steps, values, step_ticks, value_ticks, left: longest as f64 * CHARACTER + 12.0 }
    }

    fn x(&self, step: f64) -> f64 {
        let (low, high) = self.steps;
        let width = WIDTH - self.left - RIGHT;
        if high == low { self.left + width / 2.0 } else { self.left + width * (step - low) / (high - low) }
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low)
    }

    fn draw(&self, svg: &mut String) {
        let (left, right, bottom) = (self.left, WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &tick in &self.value_ticks {
            let y = self.y(tick);
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M{left:.1} {y:.1}H{right:.1}\"/>");
            let label = number(tick);
            let _ = writeln!(svg, "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>", left - 5.0, y + 4.0);
        }
        let _ = writeln!(svg, "<path class=\"axis\" d=\"M{left:.1} {bottom:.1}H{right:.1}\"/>");
        for &tick in &self.step_ticks {
            let x = self.x(tick);
            let half = number(tick).len() as f64 * CHARACTER / 2.0;
            // A label at the end stays inside the drawing.
            let label = x.min(WIDTH - half - 1.0);
            let _ = writeln!(svg, "<path class=\"axis\" d=\"M{x:.1} {bottom:.1}v4\"/>");
            let _ = writeln!(
                svg,
                "<text class=\"middle\" x=\"{label:.1}\" y=\"{:.1}\">{}</text>",
                bottom + 16.0,
                number(tick)
            );
        }
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low <= high { (low, high) } else { (0.0, 0.0) }
}

/// About `count` round numbers from `low` to `high`, no closer than `least`.
fn ticks(low: f64, high: f64, count: usize, least: f64) -> Vec<f64> {
    if high <= low {
        return vec![low];
    }
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| 1.3 * factor * power >= rough).unwrap_or(10.0);
    let spacing = (factor * power).max(least);
    let first = (low / spacing - 1e-9).ceil() as i64;
    let last = (high / spacing + 1e-9).floor() as i64;
    // A range of a few units in the last place of its ends has no round numbers inside.
    if first > last || last - first > 20 {
        return vec![low];
    }
    (first..=last).map(|n| n as f64 * spacing).collect()
}

#[cfg(test)]
mod tests {
    use super::{Curve, DRAWN, Point, envelope, smooth, svg, ticks};

    fn points(values: impl Iterator<Item = f64>) -> Vec<Point> {
        values.enumerate().map(|(n, value)| Point { step: n as f64, value, interval: None }).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        for (low, high, least, expected) in [
            (0.0, 1.0, 0.0, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0][..]),
            (1.0, 100.0, 1.0, &[20.0, 40.0, 60.0, 80.0, 100.0]),
            (1.0, 3.0, 1.0, &[1.0, 2.0, 3.0]),
            (5.0, 5.0, 1.0, &[5.0]),
        ] {
            let ticks = ticks(low, high, 5, least);
            let close = ticks.iter().zip(expected).all(|(tick, expected)| (tick - expected).abs() < 1e-12);
            assert!(close && ticks.len() == expected.len(), "{ticks:?}");
        }
        for (low, high) in
            [(1e-9, 3e-9), (-1e12, 2e12), (0.1, 0.3), (1e15, 1e15 + 1.0), (-1e-300, 1e-300), (0.0, 1e308)]
        {
            let ticks = ticks(low, high, 4, 0.0);
            let slack = (high - low) * 1e-6;
            assert!((1..=21).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks.iter().all(|tick| (low - slack..=high + slack).contains(tick)), "{ticks:?}");
        }
    }

    #[test]
    fn a_long_curve_keeps_its_ends_and_extremes() {
        let mut long = points((0..10_000).map(|n| (n as f64 * 0.01).sin()));
        (long[4321].value, long[777].value) = (7.0, -7.0);
        let drawn = envelope(&long);
        assert!(drawn.len() <= DRAWN && drawn.is_sorted_by(|a, b| a.step <= b.step), "{}", drawn.len());
        for index in [0, 777, 4321, 9999] {
            assert!(drawn.contains(&long[index]), "{index}");
        }
    }

    #[test]
    fn smoothing_leaves_a_straight_line_alone() {
        let line = points((0..100).map(f64::from));
        assert!(smooth(&line)[5..95].iter().zip(&line[5..95]).all(|(a, b)| (a.value - b.value).abs() < 1e-9));
        let zigzag = smooth(&points((0..100).map(|n| f64::from(n % 2))));
        assert!(zigzag[10..90].iter().all(|point| (point.value - 0.5).abs() < 0.2));
    }

    /// Whatever the values, every coordinate is a number inside the drawing.
    #[test]
    fn coordinates_are_inside_the_drawing() {
        let extremes = [
            vec![0.0],
            vec![5.0; 3],
            vec![-1e300, 1e300],
            vec![1e-300, 2e-300],
            vec![1e15, 1e15 + 1.0],
            (0..500).map(|n| f64::from(n).powi(3)).collect(),
        ];
        for values in extremes {
            let mut curve = points(values.iter().copied());
            curve[0].interval = Some((values[0] - 1.0, values[0] + 1.0));
            let svg = svg("x", &[Curve { name: "<y>".to_owned(), points: curve }], Some((0.0, 1.0)));
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<y>"), "{svg}");
            for path in svg.split(" d=\"M").skip(1) {
                let path = path.split('"').next().unwrap_or_default();
                let numbers =
                    path.split(|c: char| !c.is_ascii_digit() && c != '.' && c != '-').filter(|n| !n.is_empty());
                assert!(
                    numbers.map(|n| n.parse::<f64>().unwrap_or(f64::NAN)).all(|n| (-1.0..=421.0).contains(&n)),
                    "{path}"
                );
            }
        }
    }
}
