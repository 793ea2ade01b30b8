//! needs product weights epilogue
// out[m, n] = Σₖ x[m, k] · W[n, k], a block of 4 rows of x and 4 of W to an invocation, held in registers: for software
// adapters, where workgroup memory is ordinary memory and barriers are costly.
// Grid: ceil(rows / (32 · 4)) · ceil(m / 4) workgroups, along n first.

fn store(m: u32, row: u32, value: vec4<f32>) {
    if (m < params.m) {
        let n = params.first + row;
        let at = m * params.out_stride + n;
        out[at] = epilogue(value.x, n);
        if (row + 1u < params.rows) { out[at + 1u] = epilogue(value.y, n + 1u); }
        if (row + 2u < params.rows) { out[at + 2u] = epilogue(value.z, n + 2u); }
        if (row + 3u < params.rows) { out[at + 3u] = epilogue(value.w, n + 3u); }
    }
}

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let across = (params.rows + 127u) / 128u;
    let row = (group % across * 32u + local) * 4u;
    let m = group / across * 4u;
    if (row >= params.rows || m >= params.m) {
        return;
    }
    let last = params.rows - 1u;
    let at0 = row * params.stride4;
    let at1 = min(row + 1u, last) * params.stride4;
    let at2 = min(row + 2u, last) * params.stride4;
    let at3 = min(row + 3u, last) * params.stride4;
    let m_last = params.m - 1u;
    let x0 = m * params.x_stride4;
    let x1 = min(m + 1u, m_last) * params.x_stride4;
    let x2 = min(m + 2u, m_last) * params.x_stride4;
    let x3 = min(m + 3u, m_last) * params.x_stride4;
    var acc0 = vec4<f32>();
    var acc1 = vec4<f32>();
    var acc2 = vec4<f32>();
    var acc3 = vec4<f32>();
    for (var k = 0u; k < params.k4; k++) {
        let w0 = weights_load(at0 + k);
        let w1 = weights_load(at1 + k);
        let w2 = weights_load(at2 + k);
        let w3 = weights_load(at3 + k);
        let v0 = x[x0 + k];
        acc0 += vec4<f32>(dot(w0, v0), dot(w1, v0), dot(w2, v0), dot(w3, v0));
        let v1 = x[x1 + k];
        acc1 += vec4<f32>(dot(w0, v1), dot(w1, v1), dot(w2, v1), dot(w3, v1));
        let v2 = x[x2 + k];
        acc2 += vec4<f32>(dot(w0, v2), dot(w1, v2), dot(w2, v2), dot(w3, v2));
        let v3 = x[x3 + k];
        acc3 += vec4<f32>(dot(w0, v3), dot(w1, v3), dot(w2, v3), dot(w3, v3));
    }
    store(m, row, acc0);
    store(m + 1u, row, acc1);
    store(m + 2u, row, acc2);
    store(m + 3u, row, acc3);
}
