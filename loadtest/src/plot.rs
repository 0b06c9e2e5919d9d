//! Plots as SVG: light, with axes that say their units, readable without script.

use std::fmt::Write;

use crate::result::number;

/// Colours that are told apart by everybody, dark enough for thin lines on white.
const COLOURS: [&str; 8] =
    ["#1f5fa8", "#c2541b", "#2f7d4f", "#8a3f8f", "#97791a", "#33808f", "#a83246", "#5c5c5c"];
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 52.0;

/// How an axis goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0.
    Linear,
    /// By powers of ten.
    Log,
    /// Shares of 1, by how many nines they have.
    Nines,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it is, with its unit.
    pub label: String,
    /// How it goes.
    pub scale: Scale,
}

impl Axis {
    /// With this label.
    pub fn new(label: &str, scale: Scale) -> Self {
        Self { label: label.to_owned(), scale }
    }
}

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// Lines over axes.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Up.
    pub y: Axis,
    /// Its lines.
    pub series: Vec<Series>,
    /// What happened, and where on the axis.
    pub marks: Vec<(f64, String)>,
}

/// Bars of parts that are stacked.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What they show.
    pub title: String,
    /// What a bar is, with its unit.
    pub label: String,
    /// Each bar's name and parts.
    pub bars: Vec<(String, Vec<(String, f64)>)>,
}

/// Text as it stands in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// How a value of an axis becomes a place between 0 and 1.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Range {
    fn of(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Self {
        let finite = values.filter(|value| value.is_finite());
        let most = finite.clone().fold(f64::MIN, f64::max);
        let least = finite.clone().filter(|value| *value > 0.0).fold(f64::MAX, f64::min);
        match scale {
            Scale::Linear => {
                Self { scale, low: 0.0, high: nice(if most > 0.0 { most } else { 1.0 }) }
            }
            Scale::Log => {
                let (least, most) = if most > 0.0 { (least, most) } else { (1.0, 10.0) };
                let (low, high) = (least.log10().floor(), most.log10().ceil());
                Self { scale, low, high: if high > low { high } else { low + 1.0 } }
            }
            Scale::Nines => Self { scale, low: 0.0, high: nines(most.clamp(0.9, 0.999_99)) },
        }
    }

    fn place(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(1e-9).log10(),
            Scale::Nines => nines(value),
        };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Values where a line is drawn, with their texts, in which zeros at the end say nothing.
    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let step = self.high / 5.0;
                (0..=5).map(|at| step * f64::from(at)).map(|value| (value, short(value))).collect()
            }
            Scale::Log => {
                let (low, high) = (self.low as i32, self.high as i32);
                (low..=high)
                    .map(|power| 10_f64.powi(power))
                    .map(|value| (value, short(value)))
                    .collect()
            }
            Scale::Nines => [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999]
                .into_iter()
                .filter(|share| nines(*share) <= self.high + 1e-9)
                .map(|share| (share, format!("p{}", short(share * 100.0))))
                .collect(),
        }
    }
}

fn short(value: f64) -> String {
    let text = number(value);
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn nines(share: f64) -> f64 {
    -(1.0 - share.min(0.999_999)).log10()
}

/// The next number above that is easily divided by five.
fn nice(most: f64) -> f64 {
    let power = 10_f64.powf(most.log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0];
    steps.into_iter().map(|step| step * power).find(|step| *step >= most).unwrap_or(10.0 * power)
}

fn open(out: &mut String, title: &str, height: f64) {
    let title = escape(title);
    let _ = writeln!(
        out,
        "<figure><figcaption>{title}</figcaption><svg class=\"plot\" role=\"img\" aria-label=\"{title}\" \
         viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">"
    );
}

fn legend(names: &[&str]) -> String {
    let item = |(index, name): (usize, &&str)| {
        let colour = COLOURS[index % COLOURS.len()];
        format!("<span><i style=\"background:{colour}\"></i>{}</span>", escape(name))
    };
    format!(
        "<div class=\"legend\">{}</div>",
        names.iter().enumerate().map(item).collect::<String>()
    )
}

impl Plot {
    /// As a figure of HTML; nothing where there is nothing to draw.
    pub fn draw(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        if points().next().is_none() {
            return String::new();
        }
        let x = Range::of(self.x.scale, points().map(|(x, _)| *x));
        let y = Range::of(self.y.scale, points().map(|(_, y)| *y));
        let across = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let up = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let (floor, edge) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        let mut out = String::new();
        open(&mut out, &self.title, HEIGHT);
        for (value, text) in x.ticks() {
            let at = across(value);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{at:.1} {TOP}V{floor}\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
                floor + 18.0
            );
        }
        for (value, text) in y.ticks() {
            let at = up(value);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{edge}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 8.0,
                at + 4.0
            );
        }
        let _ = writeln!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, edge),
            HEIGHT - 10.0,
            escape(&self.x.label)
        );
        let middle = f64::midpoint(TOP, floor);
        let _ = writeln!(
            out,
            "<text class=\"label\" transform=\"translate(16 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escape(&self.y.label)
        );
        for (index, (value, text)) in self.marks.iter().enumerate() {
            let at = across(*value);
            let (anchor, beside) =
                if at > WIDTH * 0.75 { ("end", at - 4.0) } else { ("start", at + 4.0) };
            let line = TOP + 12.0 + 14.0 * (index % 4) as f64;
            let _ = writeln!(
                out,
                "<path class=\"mark\" d=\"M{at:.1} {TOP}V{floor}\"/><text class=\"mark\" x=\"{beside:.1}\" y=\"{line}\" text-anchor=\"{anchor}\">{}</text>",
                escape(text)
            );
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let mut path = String::new();
            for (at, (x, y)) in series.points.iter().enumerate() {
                let _ = write!(
                    path,
                    "{}{:.1} {:.1}",
                    if at == 0 { "M" } else { "L" },
                    across(*x),
                    up(*y)
                );
            }
            let _ = writeln!(
                out,
                "<path class=\"series\" stroke=\"{colour}\" d=\"{path}\"><title>{}</title></path>",
                escape(&series.name)
            );
            // Points that can be told apart are shown.
            if series.points.len() <= 30 {
                for (x, y) in &series.points {
                    let told = format!("{}: {}, {}", series.name, number(*x), number(*y));
                    let _ = writeln!(
                        out,
                        "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}</title></circle>",
                        across(*x),
                        up(*y),
                        escape(&told)
                    );
                }
            }
        }
        out += "</svg>";
        let names: Vec<&str> = self.series.iter().map(|series| series.name.as_str()).collect();
        out += &legend(&names);
        out + "</figure>\n"
    }
}

impl Bars {
    /// As a figure of HTML; nothing where there is nothing to draw.
    pub fn draw(&self) -> String {
        if self.bars.is_empty() {
            return String::new();
        }
        let sums =
            self.bars.iter().map(|(_, parts)| parts.iter().map(|(_, value)| value).sum::<f64>());
        let range = Range::of(Scale::Linear, sums.clone());
        const NAMES: f64 = 200.0;
        const STEP: f64 = 30.0;
        const SUM: f64 = 60.0;
        let floor = TOP + STEP * self.bars.len() as f64;
        let across = |value: f64| NAMES + range.place(value) * (WIDTH - NAMES - RIGHT - SUM);
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.bars.iter().flat_map(|(_, parts)| parts) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let mut out = String::new();
        open(&mut out, &self.title, floor + BOTTOM);
        for (value, text) in range.ticks() {
            let at = across(value);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{at:.1} {TOP}V{floor}\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
                floor + 18.0
            );
        }
        let _ = writeln!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(NAMES, WIDTH - SUM),
            floor + BOTTOM - 10.0,
            escape(&self.label)
        );
        for (row, (name, parts)) in self.bars.iter().enumerate() {
            let top = TOP + STEP * row as f64 + 5.0;
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
                NAMES - 8.0,
                top + 15.0,
                escape(name)
            );
            let mut sum = 0.0;
            for (part, value) in parts {
                let colour = COLOURS
                    [names.iter().position(|name| name == part).unwrap_or(0) % COLOURS.len()];
                let (from, to) = (across(sum), across(sum + value));
                let told = format!("{name}, {part}: {}", number(*value));
                let _ = writeln!(
                    out,
                    "<rect class=\"bar\" x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"20\" fill=\"{colour}\"><title>{}</title></rect>",
                    (to - from).max(0.5),
                    escape(&told)
                );
                sum += value;
            }
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{}\">{}</text>",
                across(sum) + 6.0,
                top + 15.0,
                number(sum)
            );
        }
        out + "</svg>" + &legend(&names) + "</figure>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_within_the_axes() {
        let linear = Range::of(Scale::Linear, [3.0, 17.0].into_iter());
        assert_eq!((linear.high, linear.place(0.0), linear.place(20.0)), (20.0, 0.0, 1.0));
        let log = Range::of(Scale::Log, [20.0, 3000.0].into_iter());
        assert_eq!((log.low, log.high), (1.0, 4.0));
        assert!((log.place(100.0) - 1.0 / 3.0).abs() < 1e-9);
        let nines = Range::of(Scale::Nines, [0.5, 0.999].into_iter());
        assert!((nines.place(0.9) - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_plot_of_nothing_is_nothing_and_texts_are_escaped() {
        let axis = Axis::new("a <b>", Scale::Linear);
        let mut plot = Plot {
            title: "t".into(),
            x: axis.clone(),
            y: axis,
            series: Vec::new(),
            marks: Vec::new(),
        };
        assert_eq!(plot.draw(), "");
        plot.series.push(Series { name: "<s>".into(), points: vec![(1.0, 2.0), (2.0, 1.0)] });
        let drawn = plot.draw();
        assert!(
            drawn.contains("a &lt;b&gt;") && drawn.contains("&lt;s&gt;") && !drawn.contains("<s>")
        );
        assert!(drawn.contains("class=\"series\""));
    }
}
