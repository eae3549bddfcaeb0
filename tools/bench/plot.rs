//! Plots: a bar of text, and curves as SVG, both axes logarithmic.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// Around the plot, for its labels.
const MARGIN: f64 = 60.0;
/// Beside it, for the names of the curves.
const LEGEND: f64 = 160.0;
/// Numbers beyond these are drawn as these.
const DRAWN_MIN: f64 = 1e-12;
const DRAWN_MAX: f64 = 1e18;
const COLOURS: [&str; 6] = [
    "#1b6ca8", "#c0392b", "#27864f", "#8e44ad", "#d35400", "#555555",
];

/// A named line.
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    /// Positive, finite numbers.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A bar of text: `cells` long when `value` is `most`.
pub(crate) fn bar(value: f64, most: f64, cells: usize) -> String {
    let ticks = (1..=cells).filter(|cell| {
        let edge =
            most * (crate::report::count(*cell as u64) - 0.5) / crate::report::count(cells as u64);
        edge <= value
    });
    "#".repeat(ticks.count())
}

/// The decades that a range of numbers touches.
#[derive(Clone, Copy)]
struct Scale {
    first: f64,
    last: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        // Whatever the numbers are, the grid has an end.
        let decades = values.map(|value| value.clamp(DRAWN_MIN, DRAWN_MAX).log10());
        let (min, max) = decades.fold((f64::MAX, f64::MIN), |(min, max), decade| {
            (min.min(decade), max.max(decade))
        });
        let first = min.floor();
        Self {
            first,
            last: max.ceil().max(first + 1.0),
        }
    }

    /// 0 to 1.
    fn place(self, value: f64) -> f64 {
        (value.clamp(DRAWN_MIN, DRAWN_MAX).log10() - self.first) / (self.last - self.first)
    }

    fn decades(self) -> impl Iterator<Item = f64> {
        std::iter::successors(Some(self.first), |decade| Some(decade + 1.0))
            .take_while(move |decade| *decade <= self.last)
            .map(|decade| 10_f64.powf(decade))
    }
}

/// All curves in one picture.
pub(crate) fn svg(curves: &[Curve]) -> String {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    if all().next().is_none() {
        return "<svg xmlns=\"http://www.w3.org/2000/svg\"/>\n".to_owned();
    }
    let across = Scale::of(all().map(|point| point.0));
    let up = Scale::of(all().map(|point| point.1));
    let x = |value: f64| MARGIN + across.place(value) * (WIDTH - 2.0 * MARGIN);
    let y = |value: f64| HEIGHT - MARGIN - up.place(value) * (HEIGHT - 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"30\">broker CPU ns for a message, against the size</text>\n",
        WIDTH + LEGEND
    );
    let mut put = |line: String| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{line}");
    };
    for value in across.decades() {
        let (at, top, bottom) = (x(value), MARGIN, HEIGHT - MARGIN);
        put(format!(
            "<line x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
            bottom + 18.0
        ));
    }
    for value in up.decades() {
        let (at, left, right) = (y(value), MARGIN, WIDTH - MARGIN);
        put(format!(
            "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            left - 6.0,
            at + 4.0
        ));
    }
    for ((curve, colour), row) in curves.iter().zip(COLOURS.iter().cycle()).zip(0_u32..) {
        let places = curve
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)));
        let places: Vec<String> = places.collect();
        put(format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
            places.join(" "),
            WIDTH - MARGIN + 12.0,
            MARGIN + 18.0 * f64::from(row),
            curve.name
        ));
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_proportional() {
        assert_eq!(bar(10.0, 10.0, 4), "####");
        assert_eq!(bar(5.0, 10.0, 4), "##");
        assert_eq!(bar(0.0, 10.0, 4), "");
    }

    #[test]
    fn a_curve_goes_from_corner_to_corner_of_its_decades() {
        let curve = Curve {
            name: "queues",
            points: vec![(1.0, 100.0), (1000.0, 1000.0)],
        };
        let picture = svg(&[curve]);
        assert!(
            picture.contains("points=\"60.0,360.0 660.0,60.0\""),
            "{picture}"
        );
        assert!(picture.contains(">queues</text>") && picture.ends_with("</svg>\n"));
        assert_eq!(svg(&[]).lines().count(), 1);
        let wild = Curve {
            name: "wild",
            points: vec![(1.0, f64::INFINITY), (2.0, 0.0)],
        };
        assert!(svg(&[wild]).contains("<polyline"));
    }
}
