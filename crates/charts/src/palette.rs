//! Colours of plots as variables of a style sheet, for light, dark and print.

/// Style sheet of plots and tables. The tests compute its contrasts, and the distances of its colours as colour-blind
/// people see them.
pub const STYLE: &str = include_str!("charts.css");

/// Shades of a heat map; classes `h0` to `h6` of the style sheet.
pub(crate) const SHADES: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    /// Least ratio of luminances of a text or a mark and what it is on (WCAG 2.2, 1.4.3).
    const LEAST_CONTRAST: f64 = 4.5;

    /// Least distance of two colours of series in CIE L*a*b*; 2.3 is just noticeable.
    const LEAST_DISTANCE: f64 = 18.0;

    /// Colours as people see them, as rows of a matrix over linear RGB: with three cones, and without each of them (Machado,
    /// Oliveira and Fernandes, 2009).
    const SIGHTS: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ];

    fn linear(colour: &str) -> [f64; 3] {
        [1, 3, 5].map(|place| {
            let part = f64::from(u8::from_str_radix(&colour[place..place + 2], 16).unwrap()) / 255.0;
            if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        })
    }

    fn luminance([red, green, blue]: [f64; 3]) -> f64 {
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    fn contrast(one: &str, other: &str) -> f64 {
        let [one, other] = [one, other].map(|colour| luminance(linear(colour)) + 0.05);
        one.max(other) / one.min(other)
    }

    fn seen(colour: [f64; 3], sight: &[[f64; 3]; 3]) -> [f64; 3] {
        sight.map(|row| row.iter().zip(colour).map(|(factor, part)| factor * part).sum())
    }

    fn lab(colour: [f64; 3]) -> [f64; 3] {
        let [red, green, blue] = colour;
        let x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505;
        let z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089;
        let root = |part: f64| if part > 0.008856 { part.cbrt() } else { 7.787 * part.max(0.0) + 16.0 / 116.0 };
        let [x, y, z] = [x, luminance(colour), z].map(root);
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    /// The colours called `name`, of light and of dark.
    fn colours(name: &str) -> Vec<&'static str> {
        let start = format!("{name}: #");
        STYLE.match_indices(&start).map(|(at, _)| &STYLE[at + start.len() - 1..at + start.len() + 6]).collect()
    }

    /// The colour that the class `name` fills with, where it is no variable.
    fn fill(name: &str) -> &'static str {
        let at = STYLE.find(&format!(".{name}")).unwrap();
        let hash = at + STYLE[at..].find('#').unwrap();
        &STYLE[hash..hash + 7]
    }

    #[test]
    fn everything_stands_out_from_what_it_is_on() {
        for (marks, ground) in [
            (vec!["--text", "--muted", "--s0", "--s1", "--s2", "--s3", "--roof", "--good", "--bad"], "--page"),
            (vec!["--text", "--muted", "--good", "--bad"], "--panel"),
            (vec!["--note", "--text"], "--note-page"),
        ] {
            for mark in marks {
                let pairs = colours(mark).into_iter().zip(colours(ground));
                let contrasts: Vec<f64> = pairs.map(|(mark, ground)| contrast(mark, ground)).collect();
                assert_eq!(contrasts.len(), 2, "{mark} in light and dark");
                assert!(contrasts.iter().all(|ratio| *ratio >= LEAST_CONTRAST), "{mark} on {ground}: {contrasts:?}");
            }
        }
        for shade in 0..SHADES {
            let (ground, text) = (fill(&format!("h{shade} ")), if shade < 4 { fill("t0,") } else { fill("t4,") });
            assert!(contrast(ground, text) >= LEAST_CONTRAST, "h{shade}: {}", contrast(ground, text));
        }
        assert!((contrast("#000000", "#ffffff") - 21.0).abs() < 1e-9);
    }

    #[test]
    fn series_differ_for_colour_blind_people() {
        for mode in 0..2 {
            let series: Vec<&str> = (0..4).map(|place| colours(&format!("--s{place}"))[mode]).collect();
            for (sight, name) in SIGHTS.iter().zip(["all cones", "no red", "no green", "no blue"]) {
                for (place, one) in series.iter().enumerate() {
                    for other in &series[place + 1..] {
                        let [one_seen, other_seen] = [one, other].map(|colour| lab(seen(linear(colour), sight)));
                        let squares = one_seen.iter().zip(other_seen).map(|(a, b)| (a - b).powi(2));
                        let distance = squares.sum::<f64>().sqrt();
                        assert!(distance >= LEAST_DISTANCE, "{one} and {other}, {name}: {distance:.1}");
                    }
                }
            }
        }
    }
}
