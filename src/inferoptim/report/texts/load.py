"""The words of the load test's page, English and French side by side so that they cannot drift apart."""

from __future__ import annotations

_BOTH: dict[str, tuple[str, str]] = {
    "load.kicker": ("Inference-Optim-LLM · load test", "Inference-Optim-LLM · test de charge"),
    "load.title": ("Load test of {url}", "Test de charge de {url}"),
    "load.verdict": ("Result", "Résultat"),
    "load.stages": ("Stage by stage", "Palier par palier"),
    "load.cdf": ("Latency of every request", "Latence de chaque requête"),
    "load.timeline": ("Time to first token over the run", "Temps jusqu'au premier token au fil du test"),
    "load.errors": ("Errors", "Erreurs"),
    "load.client": ("Was the client the bottleneck?", "Le client était-il le goulot ?"),
    "load.method": ("How it was measured", "Méthode"),
    "load.valid": (
        "The client kept up in every stage: the figures describe the server.",
        "Le client a suivi à chaque palier : les chiffres décrivent le serveur.",
    ),
    "load.invalid": (
        "INVALID: the client was the bottleneck in {stages}. Its figures describe the client, not the server.",
        "NON VALIDE : le client était le goulot dans {stages}. Ces chiffres décrivent le client, pas le serveur.",
    ),
    "load.interrupted": (
        "The test was interrupted; what had ended is shown.",
        "Le test a été interrompu ; ce qui était terminé est montré.",
    ),
    "load.best": (
        "{stage}: {rate} requests/s and {tokens} output tokens/s; {failed} of {requests} requests failed.",
        "{stage} : {rate} requêtes/s et {tokens} tokens produits/s ; {failed} requêtes sur {requests} ont échoué.",
    ),
    "load.max": (
        "Highest rate that met the objectives ({objectives}, {attainment} of requests): {rate} requests/s.",
        "Débit le plus élevé qui tient les objectifs ({objectives}, {attainment} des requêtes) : {rate} requêtes/s.",
    ),
    "load.max_failed": ("{rate} requests/s did not meet them.", "{rate} requêtes/s ne les tient pas."),
    "load.max_none": (
        "No rate that was tried met the objectives ({objectives}, {attainment} of requests).",
        "Aucun débit essayé ne tient les objectifs ({objectives}, {attainment} des requêtes).",
    ),
    "load.measure": ("Measure", "Mesure"),
    "load.shape": ("Load", "Charge"),
    "load.requests": ("Requests", "Requêtes"),
    "load.failed": ("Failed", "Échouées"),
    "load.requests_per_s": ("Requests/s", "Requêtes/s"),
    "load.output_per_s": ("Output tokens/s", "Tokens produits/s"),
    "load.goodput": ("Goodput, requests/s", "Goodput, requêtes/s"),
    "load.attainment": ("Met every objective", "Objectifs tous tenus"),
    "load.attainment_late": ("… of the second half", "… de la seconde moitié"),
    "load.jitter": ("ITL jitter, P99 / P50", "Gigue d'ITL, P99 / P50"),
    "load.prompt_tokens": ("Prompt tokens, median", "Tokens d'entrée, médiane"),
    "load.output_tokens": ("Output tokens, median", "Tokens de sortie, médiane"),
    "load.cached": ("Prompt tokens from the prefix cache", "Tokens d'entrée venus du cache de préfixes"),
    "load.send_lag": ("Send lag", "Retard d'envoi"),
    "load.loop_lag": ("Event-loop lag", "Retard de la boucle d'événements"),
    "load.cpu": ("Client CPU, of one core", "Processeur du client, d'un cœur"),
    "load.ceiling_share": ("Share of the client's ceiling", "Part du plafond du client"),
    "load.stage": ("Stage", "Palier"),
    "load.kind": ("Error", "Erreur"),
    "load.count": ("Count", "Nombre"),
    "load.example": ("First message", "Premier message"),
    "load.no_errors": ("No request failed.", "Aucune requête n'a échoué."),
    "load.too_few": ("n too small", "n trop petit"),
    "load.percentile_note": (
        "A percentile is printed only where the number of observations allows it: P95 from 59, P99 from 299. Latency "
        "counts from the moment the request was due, so that a client or server that lags cannot hide it. One run has "
        "no interval: repeat it before ranking two servers.",
        "Un percentile n'est imprimé que si le nombre d'observations le permet : P95 dès 59, P99 dès 299. La latence "
        "part du moment où la requête était due, de sorte qu'un client ou un serveur en retard ne peut le cacher. Un "
        "seul test n'a pas d'intervalle : répétez-le avant de classer deux serveurs.",
    ),
    "load.timeline_note": (
        "Each point is a request, at the time it was due; crosses at the top are requests that failed. A cloud that "
        "rises to the right is a queue that grows.",
        "Chaque point est une requête, à l'instant où elle était due ; les croix en haut sont des échecs. Un nuage qui "
        "monte vers la droite est une file qui grandit.",
    ),
    "load.sampled": ("{shown} of {n} requests drawn.", "{shown} requêtes sur {n} dessinées."),
    "load.client_note": (
        "Send lag is how late the client sent a request that was due; event-loop lag is how late a 10 ms timer fired in "
        "the client while the load ran. The ceiling is what the same client reached, on this machine, just before, "
        "against a server that answers at once. Allowed lag: {allowed}.",
        "Le retard d'envoi dit combien de temps après l'échéance le client a envoyé une requête ; le retard de boucle dit "
        "de combien un minuteur de 10 ms a tardé dans le client pendant la charge. Le plafond est ce que ce même client "
        "a atteint, sur cette machine, juste avant, face à un serveur qui répond aussitôt. Retard admis : {allowed}.",
    ),
    "load.self_test": ("Client's ceiling", "Plafond du client"),
    "load.self_test_value": (
        "{requests} requests/s, {tokens} tokens/s ({per} tokens an answer, {concurrency} at once)",
        "{requests} requêtes/s, {tokens} tokens/s ({per} tokens par réponse, {concurrency} à la fois)",
    ),
    "load.not_tested": ("not measured (--no-self-test)", "non mesuré (--no-self-test)"),
    "load.model": ("Model", "Modèle"),
    "load.server_version": ("Server version", "Version du serveur"),
    "load.workload": ("Workload", "Charge de travail"),
    "load.objectives": ("Objectives", "Objectifs"),
    "load.features": ("Fields the server accepted", "Champs acceptés par le serveur"),
    "load.machine": ("Client's machine", "Machine du client"),
    "load.started": ("Started", "Début"),
    "load.command": ("Command", "Commande"),
    "load.notes": ("Notes", "Remarques"),
    "load.axis_ttft": ("time to first token, s", "temps jusqu'au premier token, s"),
    "load.axis_e2e": ("end to end, s", "de bout en bout, s"),
    "load.axis_time": ("due, seconds since the stage began", "échéance, secondes depuis le début du palier"),
    "load.axis_share": ("share of requests", "part des requêtes"),
    "load.others": ("other stages", "autres paliers"),
    "load.cdf_alt": (
        "Cumulative share of requests by time to first token and by end-to-end time.",
        "Part cumulée des requêtes selon le temps jusqu'au premier token et le temps de bout en bout.",
    ),
    "load.timeline_alt": (
        "Time to first token of each request against the time at which it was due.",
        "Temps jusqu'au premier token de chaque requête selon l'instant où elle était due.",
    ),
    "load.nothing": ("Nothing succeeded, so there is nothing to draw.", "Rien n'a abouti : rien à dessiner."),
    "load.bound": ("{metric} ≤ {bound}", "{metric} ≤ {bound}"),
}

LOAD_TEXTS: dict[str, dict[str, str]] = {
    "en": {key: english for key, (english, _) in _BOTH.items()},
    "fr": {key: french for key, (_, french) in _BOTH.items()},
}
