//! Fewer points for the same picture.

/// Points of a line at most: about two for each place that a screen shows.
pub(crate) const MOST_POINTS: usize = 480;

/// `points` without those that have no number; of each of equal parts of more than `most`, the least and the largest.
pub(crate) fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    if finite.len() <= most {
        return finite;
    }
    // Two points of each part are kept, hence half as many parts.
    let part = finite.len().div_ceil((most / 2).max(1));
    let mut kept = Vec::with_capacity(most);
    for points in finite.chunks(part) {
        let at = |better: fn(f64, f64) -> bool| {
            (0..points.len()).reduce(|best, next| if better(points[next].1, points[best].1) { next } else { best })
        };
        // Peaks and stalls are what a reader looks for, so that a mean would hide them.
        let (least, largest) = (at(|next, best| next < best).unwrap_or(0), at(|next, best| next > best).unwrap_or(0));
        kept.push(points[least.min(largest)]);
        if least != largest {
            kept.push(points[least.max(largest)]);
        }
    }
    kept
}
