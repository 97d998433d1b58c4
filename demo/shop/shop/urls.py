# SPDX-License-Identifier: MIT
"""The addresses of the demo shop."""

from django.urls import path

from catalogue import views

urlpatterns = [
    path('', views.index),
    path('about/', views.about),
    path('products/', views.products),
    path('products/<int:pk>/', views.product),
    path('products/<int:pk>/visit/', views.visit),
    path('products/<int:pk>/buy/', views.buy),
    path('slow/', views.slow),
    path('who/', views.who),
]
