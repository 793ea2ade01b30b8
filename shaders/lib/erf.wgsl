// erf_exact(v): the error function, which WGSL lacks, by polynomial 7.1.26 of Abramowitz and Stegun; off by at most 1.5e-7.
fn erf_exact(v: f32) -> f32 {
    let a = abs(v);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(v) * (1.0 - p * exp(-a * a));
}
