//! Medians.

/// The middle one; of an even number the higher of the two.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures = figures.collect::<Vec<_>>();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// The same of those that are known, if any is.
pub(crate) fn median_of_known(figures: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let known = figures.flatten().collect::<Vec<_>>();
    (!known.is_empty()).then(|| median(known.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < f64::EPSILON);
        assert!(median(std::iter::empty()).abs() < f64::EPSILON);
        let known = median_of_known([Some(3.0), None, Some(5.0), Some(4.0)].into_iter());
        assert!((known.unwrap() - 4.0).abs() < f64::EPSILON);
        assert_eq!(median_of_known([None, None].into_iter()), None);
    }
}
