//! needs product weights epilogue
//! const COLS
// out[c, n] = Σₖ W[n, k] · x[c, k] for 1 to 8 columns c, four rows n to an invocation: for software adapters, where an
// invocation is a SIMD lane of a core and there is nothing to share. The sum runs over k in groups of four, one
// accumulator for each place in the group, whatever the number of columns.
// Grid: ceil(rows / 128) workgroups.

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let row = ((id.y * grid.x + id.x) * 32u + local) * 4u;
    if (row >= params.rows) {
        return;
    }
    let last = params.rows - 1u;
    let at0 = row * params.stride4;
    let at1 = min(row + 1u, last) * params.stride4;
    let at2 = min(row + 2u, last) * params.stride4;
    let at3 = min(row + 3u, last) * params.stride4;
    var acc0: array<vec4<f32>, COLS>;
    var acc1: array<vec4<f32>, COLS>;
    var acc2: array<vec4<f32>, COLS>;
    var acc3: array<vec4<f32>, COLS>;
    for (var k = 0u; k < params.k4; k++) {
        let w0 = weights_load(at0 + k);
        let w1 = weights_load(at1 + k);
        let w2 = weights_load(at2 + k);
        let w3 = weights_load(at3 + k);
        for (var c = 0u; c < COLS; c++) {
            let v = x[(params.start + c) * params.x_stride4 + k];
            acc0[c] = fma(w0, v, acc0[c]);
            acc1[c] = fma(w1, v, acc1[c]);
            acc2[c] = fma(w2, v, acc2[c]);
            acc3[c] = fma(w3, v, acc3[c]);
        }
    }
    for (var c = 0u; c < COLS; c++) {
        let n = params.first + row;
        let at = (params.start + c) * params.out_stride + n;
        out[at] = epilogue(product_sum4(acc0[c]), n);
        if (row + 1u <= last) { out[at + 1u] = epilogue(product_sum4(acc1[c]), n + 1u); }
        if (row + 2u <= last) { out[at + 2u] = epilogue(product_sum4(acc2[c]), n + 2u); }
        if (row + 3u <= last) { out[at + 3u] = epilogue(product_sum4(acc3[c]), n + 3u); }
    }
}
